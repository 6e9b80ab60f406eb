-- What the bench notes inside the database, in the transactions that it is about: every move of every job, and who was
-- leader just then. A leader's write runs behind the fence, which locks the leader's row, so what a trigger reads of
-- that row holds until the write is committed.

CREATE SCHEMA chaos;

CREATE TABLE chaos.effects (
  job_id bigint NOT NULL, attempt integer NOT NULL, pid integer NOT NULL, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE chaos.acknowledged (id bigint NOT NULL, expected text NOT NULL);
CREATE TABLE chaos.seen (id bigint NOT NULL, attempt integer NOT NULL);
CREATE TABLE chaos.limits (type text NOT NULL, per_key boolean NOT NULL, most integer NOT NULL);

-- Epochs as they began, and as they were seen from outside.
CREATE TABLE chaos.epochs (
  number bigint GENERATED ALWAYS AS IDENTITY, epoch bigint NOT NULL, holder uuid, at timestamptz NOT NULL DEFAULT clock_timestamp()
);
CREATE TABLE chaos.seen_epochs (number bigint GENERATED ALWAYS AS IDENTITY, epoch bigint NOT NULL);

-- `holder`: whose session wrote, by its name; `led`, `led_epoch`: who led then. `became` is 'gone' where the job left the
-- table; 'reaped' and 'fired' are a leader's writes that are no job's.
CREATE TABLE chaos.moves (
  number bigint GENERATED ALWAYS AS IDENTITY, at timestamptz NOT NULL DEFAULT clock_timestamp(),
  job_id bigint, attempt integer, type text, key text, unique_key text, was text NOT NULL, became text NOT NULL,
  epoch bigint, worker_id uuid, holder text, led text, led_epoch bigint
);

CREATE FUNCTION chaos.holder() RETURNS text LANGUAGE sql STABLE AS
$$ SELECT substring(current_setting('application_name') FROM '^pgqueue/(.*)$') $$;

CREATE FUNCTION chaos.note_move() RETURNS trigger LANGUAGE plpgsql AS $$
DECLARE
  leader pgqueue.leader;
BEGIN
  IF TG_OP = 'INSERT' THEN
    INSERT INTO chaos.moves (job_id, attempt, type, key, unique_key, was, became)
    VALUES (NEW.id, NEW.attempt, NEW.type, NEW.concurrency_key, NEW.unique_key, 'new', NEW.state);
  ELSIF TG_OP = 'DELETE' THEN
    INSERT INTO chaos.moves (job_id, attempt, type, key, unique_key, was, became, epoch, worker_id)
    VALUES (OLD.id, OLD.attempt, OLD.type, OLD.concurrency_key, OLD.unique_key, OLD.state, 'gone', OLD.epoch, OLD.worker_id);
  ELSIF OLD.state <> NEW.state OR OLD.attempt <> NEW.attempt THEN
    IF NEW.state = 'processing' OR (OLD.state = 'scheduled' AND NEW.state = 'pending') THEN
      SELECT * INTO leader FROM pgqueue.leader WHERE name = 'default';
    END IF;
    INSERT INTO chaos.moves
      (job_id, attempt, type, key, unique_key, was, became, epoch, worker_id, holder, led, led_epoch)
    VALUES (NEW.id, NEW.attempt, NEW.type, NEW.concurrency_key, NEW.unique_key, OLD.state, NEW.state, NEW.epoch,
            NEW.worker_id, chaos.holder(), leader.holder_id, leader.epoch);
  END IF;
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER INSERT OR UPDATE OR DELETE ON pgqueue.jobs
FOR EACH ROW EXECUTE FUNCTION chaos.note_move();

CREATE FUNCTION chaos.note_write() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.moves (was, became, holder, led, led_epoch)
  SELECT TG_TABLE_NAME, TG_ARGV[0], chaos.holder(), leader.holder_id, leader.epoch
  FROM pgqueue.leader AS leader WHERE leader.name = 'default';
  RETURN NULL;
END $$;
-- The leader marks a worker dead and touches nothing else; one that goes by itself says when.
CREATE TRIGGER chaos_note AFTER UPDATE OF dead ON pgqueue.workers FOR EACH ROW
WHEN (NEW.dead AND NOT OLD.dead AND NEW.expires_at = OLD.expires_at) EXECUTE FUNCTION chaos.note_write('reaped');
CREATE TRIGGER chaos_note AFTER INSERT ON pgqueue.schedule_fires FOR EACH ROW
EXECUTE FUNCTION chaos.note_write('fired');

CREATE FUNCTION chaos.note_epoch() RETURNS trigger LANGUAGE plpgsql AS $$
BEGIN
  INSERT INTO chaos.epochs (epoch, holder) VALUES (NEW.epoch, NEW.holder_id);
  RETURN NULL;
END $$;
CREATE TRIGGER chaos_note AFTER UPDATE ON pgqueue.leader FOR EACH ROW
WHEN (NEW.epoch IS DISTINCT FROM OLD.epoch) EXECUTE FUNCTION chaos.note_epoch();
