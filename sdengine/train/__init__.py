"""Training of draft models and of the bundled pair; needs nothing from the engine at run time."""
