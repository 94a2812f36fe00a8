-- Makes types.txt from a PostgreSQL 15 catalogue (`cargo xtask functions`): the server's own types but arrays and rows
-- of its tables.
select typname from pg_type
where typnamespace = 'pg_catalog'::regnamespace and typtype <> 'c' and not (typelem <> 0 and typlen = -1)
order by typname::text collate "C";
