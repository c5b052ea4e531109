"""InternImage inside other libraries: timm."""
