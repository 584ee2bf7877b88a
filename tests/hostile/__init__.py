"""A seeded corpus of hostile input: pictures, captions, archives, tables, manifests, SQL and weights."""
