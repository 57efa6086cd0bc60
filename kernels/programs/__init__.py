"""Programs: launches recorded once and replayed, on a CPU or a device, and the memory they share
with the host."""
