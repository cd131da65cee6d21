"""Recipes for images: the DINO family, methods for small pictures, the papers' recipes for ImageNet-1k."""
