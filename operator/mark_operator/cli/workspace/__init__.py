"""Copies in and out of a workspace claim, through a short-lived Pod. It must not know what the files mean."""
