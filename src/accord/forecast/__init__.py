"""Memory of a recipe on given devices, before it runs. No torch is imported here."""
