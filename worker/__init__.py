"""The process with the model. ``celery -A worker worker`` finds its app in `worker.celery`."""
