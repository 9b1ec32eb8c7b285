"""The project. Importing it makes its Celery app the current one, as Celery's guide says."""

from shop.celery import app as celery_app

__all__ = ["celery_app"]
