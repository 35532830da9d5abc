"""The networks: encoded features in, probabilities out. Knows `schema` and `config`; not how they are trained."""
