#include "cpu/rms_norm.inl"
