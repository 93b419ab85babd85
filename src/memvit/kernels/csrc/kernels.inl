// All kernels for one instruction set; see vectors.inl.
#include "vectors.inl"
#include "queries.inl"
#include "attention.inl"
#include "norm.inl"
#include "layer_norm.inl"
#include "pooling.inl"
#include "max_pooling.inl"
