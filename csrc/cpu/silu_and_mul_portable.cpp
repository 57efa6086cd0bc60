#include "cpu/silu_and_mul.inl"
