select a, b from orders where id = $1
-- ~~
select o.id, c.email from orders o join customers c on c.id = o.customer_id left join items i using (order_id) where o.status in ('new', 'paid') order by 1 desc nulls last limit 10 offset 5
-- ~~
select count(*), count(distinct x) filter (where y > 1), sum(z) over (partition by a order by b rows between 1 preceding and current row) from t group by a having count(*) > 1
-- ~~
with recursive t(n) as (values (1) union all select n + 1 from t where n < 100) select sum(n) from t
-- ~~
insert into orders (id, status) values (1, default), (2, 'x') on conflict (id) do update set status = excluded.status where orders.id > 1 returning *
-- ~~
insert into a select * from b where exists (select 1 from c where c.id = b.id)
-- ~~
update orders as o set status = c.name, x = (select max(y) from z), (p, q) = (select 1, 2) from customers c where c.id = o.customer_id returning o.id, c.name
-- ~~
delete from only orders using customers c where c.id = orders.customer_id and c.name like 'a%' returning orders.*
-- ~~
merge into stock s using arrivals a on s.sku = a.sku when matched and a.qty = 0 then delete when matched then update set qty = s.qty + a.qty when not matched then insert (sku, qty) values (a.sku, a.qty)
-- ~~
with gone as (delete from orders where id = 1 returning *), kept as (insert into archive select * from gone returning id) select * from kept, secret
-- ~~
select * from generate_series(1, 10) with ordinality as g(x, n), lateral (select * from t where t.id = g.x) l, unnest(array[1,2]) u
-- ~~
select case when a > 1 then 'x' else coalesce(b, 'y') end, cast(c as numeric(10, 2)), d::text[], extract(epoch from e), f -> 'k' ->> 'v', g @> '{}'::jsonb, interval '1 day', date '2020-01-01', (h).i, j[1:2], row(1, 2), array(select k from l) from m
-- ~~
table orders
-- ~~
(select 1 union select 2) intersect (table t except all values (1), (2))
-- ~~
select a into temp made from orders
-- ~~
select * from orders for update of orders skip locked
-- ~~
select user_defined(1), other.f(a => 1), now(), current_date, pg_sleep(1), nextval('s') from t
-- ~~
create table made (id int primary key default f(), x text references other(id) on delete cascade, check (g(x) > 0)) partition by range (id)
-- ~~
create temp table made on commit drop as select * from orders with no data
-- ~~
alter table orders add column x int default 1, drop column y cascade
-- ~~
alter table orders owner to eve
-- ~~
drop table if exists a, b.c cascade
-- ~~
truncate a, only b restart identity cascade
-- ~~
lock table a, b in access exclusive mode nowait
-- ~~
copy orders (id, status) to stdout with (format csv, header true, delimiter ';')
-- ~~
copy (select * from orders) to stdout csv header
-- ~~
copy orders from '/etc/passwd'
-- ~~
copy orders to program 'curl evil'
-- ~~
explain (analyze, buffers) delete from orders
-- ~~
prepare p (int, text) as update orders set status = $2 where id = $1
-- ~~
execute p(1, upper('x'))
-- ~~
grant select on orders to eve
-- ~~
vacuum full orders
-- ~~
vacuum (analyze, verbose) orders (id), items
-- ~~
call do_it(1, now())
-- ~~
do $$ begin delete from orders; end $$
-- ~~
notify ch, 'x'
-- ~~
create or replace function f(a int default g(1)) returns int language plpgsql security definer as 'begin end'
-- ~~
create trigger t after insert or update of x on orders for each row when (new.x > 1) execute function f()
-- ~~
create unique index concurrently if not exists i on only orders using btree (lower(x) text_pattern_ops, y desc) include (z) where a > 1
-- ~~
refresh materialized view concurrently mv
-- ~~
set local search_path to a, "B", pg_catalog
-- ~~
set role eve
-- ~~
create view v (a, b) as select x, y from orders with check option
-- ~~
comment on column public.orders.id is 'x'
