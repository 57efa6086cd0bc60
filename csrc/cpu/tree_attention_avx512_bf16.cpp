#include "cpu/tree_attention.inl"
