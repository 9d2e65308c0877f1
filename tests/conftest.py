"""Lies here so that pytest puts tests/ on the import path: `import graphs` works in every test."""
