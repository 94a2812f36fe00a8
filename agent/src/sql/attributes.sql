-- Makes attributes.txt from a PostgreSQL 15 catalogue (`cargo xtask functions`): functions that `x.name` calls with `x`
-- as the only argument, and that are not in functions.txt (the variable `reviewed`, its lines).
select distinct proname::text collate "C" from pg_proc
where pronamespace = 'pg_catalog'::regnamespace and prokind = 'f' and pronargs >= 1 and pronargs - pronargdefaults <= 1
  and prorettype not in ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype)
  and 'internal'::regtype <> all (proargtypes::oid[])
  and proname <> all (string_to_array(:'reviewed', E'\n'))
order by 1;
