-- Makes keywords.txt from a PostgreSQL 15 server (`cargo xtask functions`).
select word || ' ' || catcode::text from pg_get_keywords() order by word::text collate "C";
