"""Views of photographs: geometry, cropping, photometrics, masks."""
