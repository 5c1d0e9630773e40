"""Figures of translations, and their tables, pages, sheets and plots."""
