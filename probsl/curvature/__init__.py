"""The curvature of a program's density: information, scores of rows, covariances."""
