"""The truth: PostgreSQL tables behind the JobStore port, and content-addressed files behind the ArtifactStore port."""
