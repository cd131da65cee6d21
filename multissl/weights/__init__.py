"""Weights in and out: files, the published namings of networks, and positions of another grid."""
