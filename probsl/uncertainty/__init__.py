"""How sure a fit is: covariances, intervals and tests."""
