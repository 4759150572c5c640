"""Certificates for mutual TLS."""
