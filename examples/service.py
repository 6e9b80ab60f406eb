"""A service that stores a row and enqueues a job about it in one transaction.

DATABASE_URL is SQLAlchemy's, such as postgresql+psycopg://user@host/database, with pgqueue's schema in that database.
"""

from __future__ import annotations

import os

from sqlalchemy import create_engine, text
from sqlalchemy.orm import Session

from pgqueue import Queue

engine = create_engine(os.environ["DATABASE_URL"])
queue = Queue(os.environ["DATABASE_URL"])


def create_image(session: Session, name: str) -> int:
    """Store the image; its job exists when the caller commits, and never if they roll back. Returns the job's id."""
    session.execute(text("INSERT INTO images (name) VALUES (:name)"), {"name": name})
    return queue.enqueue("resize", {"image": name}, connection=session).id


def main() -> None:
    with Session(engine) as session:
        session.execute(text("CREATE TABLE IF NOT EXISTS images (name text)"))
        session.commit()

        kept = create_image(session, "cat.png")
        session.commit()

        create_image(session, "dog.png")
        session.rollback()
    print(f"job {kept} is {queue.get(kept).state}; of the other nothing is left: {queue.counts()['pending']} pending")
    queue.close()
    engine.dispose()


if __name__ == "__main__":
    main()
