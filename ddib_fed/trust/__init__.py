"""Identities, certificates, admitted peers, TLS and the audit log."""
