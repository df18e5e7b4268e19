"""Pruners: each turns widths per block into the tensors that are left."""
