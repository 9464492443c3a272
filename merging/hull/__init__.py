"""How far a merge lies outside its experts' convex hull, affine and linear span."""
