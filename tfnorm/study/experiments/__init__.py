"""The experiments: a file each, from names of norms, seeds and a common configuration to a grid."""
