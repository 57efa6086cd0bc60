#include "cpu/rope_kv_append.inl"
