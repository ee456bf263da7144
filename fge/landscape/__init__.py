"""Planes and lines through weight space, and the Hessian."""
