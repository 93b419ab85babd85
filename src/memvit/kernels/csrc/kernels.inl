// All kernels for one instruction set; see vectors.inl.
#include "vectors.inl"
#include "queries.inl"
#include "attention.inl"
#include "pooling.inl"
#include "max_pooling.inl"
