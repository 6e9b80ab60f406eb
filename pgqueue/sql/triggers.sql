-- Triggers: the savepoints around the jobs of an event, and row triggers on the application's tables.

-- name: savepoint
-- Before a trigger's job.
SAVEPOINT pgqueue_trigger

-- name: undo
-- A trigger failed: what it did goes, and the transaction is good again.
ROLLBACK TO SAVEPOINT pgqueue_trigger

-- name: release
-- After a trigger's job.
RELEASE SAVEPOINT pgqueue_trigger

-- name: find_table
-- The table of this name, written as SQL writes it, and as PostgreSQL writes it; NULL without it.
SELECT CAST(to_regclass(CAST(%(table)s AS text)) AS text)

-- name: install
-- A row trigger that enqueues as `settings` says.
SELECT CAST(pgqueue.install_trigger(CAST(CAST(%(table)s AS text) AS regclass), CAST(%(name)s AS text),
                                    CAST(%(events)s AS text[]), CAST(CAST(%(settings)s AS text) AS jsonb),
                                    CAST(%(condition)s AS text)) AS text)

-- name: list_triggers
-- Every trigger that enqueues, with its table, its events, its condition and its settings.
SELECT row_trigger.tgname, CAST(CAST(row_trigger.tgrelid AS regclass) AS text),
       array_remove(ARRAY[CASE WHEN row_trigger.tgtype & 4 > 0 THEN 'insert' END,
                          CASE WHEN row_trigger.tgtype & 16 > 0 THEN 'update' END,
                          CASE WHEN row_trigger.tgtype & 8 > 0 THEN 'delete' END], NULL),
       substring(pg_get_triggerdef(row_trigger.oid) FROM ' FOR EACH ROW WHEN \((.*)\) EXECUTE FUNCTION '),
       row_trigger.tgenabled <> 'D',
       convert_from(substring(row_trigger.tgargs FROM 1 FOR octet_length(row_trigger.tgargs) - 1), 'UTF8')
FROM pg_trigger AS row_trigger
WHERE row_trigger.tgfoid = CAST('pgqueue.enqueue_row()' AS regprocedure) AND row_trigger.tgparentid = 0
ORDER BY 2, 1

-- name: remove
-- Drop a trigger.
SELECT CAST(pgqueue.remove_trigger(CAST(CAST(%(table)s AS text) AS regclass), CAST(%(name)s AS text)) AS text)
