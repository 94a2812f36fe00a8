-- Makes operators.txt from a PostgreSQL 15 catalogue (`cargo xtask functions`): the names of the server's own operators.
select distinct oprname::text collate "C" from pg_operator
where oprnamespace = 'pg_catalog'::regnamespace
order by 1;
