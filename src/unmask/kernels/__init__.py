"""Triton kernels, one noun a file: plain functions on tensors. Nothing else imports Triton."""
