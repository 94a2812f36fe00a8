-- Makes functions.txt from a PostgreSQL 15 catalogue: `cargo xtask functions`
-- A name is in if every pg_catalog function of that name is immutable or stable and not on the deny list, or if it is
-- on the list of harmless volatile ones. Both lists are kept by hand.
with denied(pattern) as (values
  -- Run or read what their text argument names.
  ('query_to_xml%'), ('table_to_xml%'), ('schema_to_xml%'), ('database_to_xml%'), ('cursor_to_xml%'), ('ts_stat'),
  ('ts_rewrite'), ('xpath_table'),
  -- Files, large objects, other sessions, replication, the server itself.
  ('lo\_%'), ('loread'), ('lowrite'), ('be\_lo%'), ('pg\_read%'), ('pg\_ls%'), ('pg\_stat\_file'), ('pg\_file%'),
  ('pg\_stat\_get\_activity'), ('pg\_stat\_get\_backend\_%'), ('pg\_stat\_get\_wal\_%'), ('pg\_cursor'),
  ('pg\_prepared\_%'), ('pg\_show\_all\_file%'), ('pg\_hba%'), ('pg\_ident%'), ('pg\_logical%'), ('pg\_replication%'),
  ('pg\_event\_trigger%'), ('binary\_upgrade%'), ('pg\_config'), ('set\_config'), ('%\_handler'), ('%handler'),
  ('%\_validator'), ('pg\_get\_replication\_slots'), ('pg\_current\_xact\_id'), ('txid\_current'),
  -- Evaluate what a type's owner wrote.
  ('domain\_in'), ('domain\_recv'), ('record\_in'), ('record\_recv'), ('array\_in'), ('array\_recv'), ('range\_in'),
  ('range\_recv'), ('multirange\_in'), ('multirange\_recv'), ('fmgr%'), ('%\_support'), ('plpgsql%')
), volatile_but_harmless(name) as (values
  ('clock_timestamp'), ('timeofday'), ('random'), ('gen_random_uuid'), ('setseed'), ('current_query'), ('lastval'),
  ('currval'), ('pg_is_in_recovery'), ('pg_is_wal_replay_paused'), ('pg_current_wal_lsn'), ('pg_last_wal_receive_lsn'),
  ('pg_last_wal_replay_lsn'), ('pg_last_xact_replay_timestamp'), ('pg_relation_size'), ('pg_table_size'),
  ('pg_total_relation_size'), ('pg_indexes_size'), ('pg_database_size'), ('pg_tablespace_size'),
  ('pg_collation_actual_version'), ('pg_database_collation_actual_version'), ('pg_jit_available'),
  ('pg_partition_tree'), ('pg_partition_ancestors'), ('pg_xact_status'), ('txid_status'), ('pg_blocking_pids'),
  ('pg_sequence_last_value'), ('pg_notification_queue_usage'),
  -- Gives up what this session itself holds; asyncpg sends it.
  ('pg_advisory_unlock_all')
)
select proname from pg_proc p
where pronamespace = 'pg_catalog'::regnamespace
group by proname
having (bool_and(provolatile in ('i', 's') and prokind in ('f', 'a', 'w')
                 and prorettype not in ('trigger'::regtype, 'event_trigger'::regtype, 'internal'::regtype))
        and not exists (select from denied where proname::text like pattern))
    or exists (select from volatile_but_harmless v where v.name = proname)
order by proname::text collate "C";
