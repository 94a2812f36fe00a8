SELECT pg_catalog.set_config('search_path', '', false);
-- ~~
SELECT pg_catalog.pg_is_in_recovery()
-- ~~
--
-- PostgreSQL database dump
--
-- ~~
-- Dumped from database version 15.18 (Debian 15.18-0+deb12u1)
-- ~~
-- Dumped by pg_dump version 15.18 (Debian 15.18-0+deb12u1)
-- ~~

-- ~~
SET statement_timeout = 0;
-- ~~
SET lock_timeout = 0;
-- ~~
SET idle_in_transaction_session_timeout = 0;
-- ~~
SET client_encoding = 'UTF8';
-- ~~
SET standard_conforming_strings = on;
-- ~~
SELECT pg_catalog.set_config('search_path', '', false);
-- ~~
SET check_function_bodies = false;
-- ~~
SET xmloption = content;
-- ~~
SET client_min_messages = warning;
-- ~~
SET row_security = off;
-- ~~
CREATE TYPE public.mood AS ENUM (
    'sad',
    'ok'
);
-- ~~
ALTER TYPE public.mood OWNER TO postgres;
-- ~~
CREATE FUNCTION public.add(a integer, b integer) RETURNS integer
    LANGUAGE sql
    AS $$select a+b$$;
-- ~~
ALTER FUNCTION public.add(a integer, b integer) OWNER TO postgres;
-- ~~
CREATE FUNCTION public.trg() RETURNS trigger
    LANGUAGE plpgsql
    AS $$begin return new; end$$;
-- ~~
ALTER FUNCTION public.trg() OWNER TO postgres;
-- ~~
SET default_tablespace = ''
-- ~~
SET default_table_access_method = heap;
-- ~~
CREATE TABLE public.customers (
    id integer NOT NULL,
    email text NOT NULL,
    name text,
    created timestamp with time zone DEFAULT now(),
    CONSTRAINT email_shape CHECK ((POSITION(('@'::text) IN (email)) > 1))
);
-- ~~
ALTER TABLE public.customers OWNER TO postgres;
-- ~~
COMMENT ON TABLE public.customers IS 'people';
-- ~~
COMMENT ON COLUMN public.customers.email IS 'mail';
-- ~~
CREATE SEQUENCE public.customers_id_seq
    AS integer
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
-- ~~
ALTER TABLE public.customers_id_seq OWNER TO postgres;
-- ~~
ALTER SEQUENCE public.customers_id_seq OWNED BY public.customers.id;
-- ~~
CREATE TABLE public.orders (
    id integer NOT NULL,
    customer_id integer,
    placed timestamp with time zone DEFAULT now(),
    status text DEFAULT 'new'::text
);
-- ~~
ALTER TABLE public.orders OWNER TO postgres;
-- ~~
CREATE MATERIALIZED VIEW public.mv AS
 SELECT count(*) AS count
   FROM public.orders
  WITH NO DATA;
-- ~~
ALTER TABLE public.mv OWNER TO postgres;
-- ~~
CREATE TABLE public.order_items (
    order_id integer NOT NULL,
    product_id bigint NOT NULL,
    qty integer DEFAULT 1 NOT NULL
);
-- ~~
ALTER TABLE public.order_items OWNER TO postgres;
-- ~~
CREATE TABLE public.products (
    id bigint NOT NULL,
    sku character varying(20) NOT NULL,
    price numeric(10,2),
    data jsonb DEFAULT '{}'::jsonb,
    CONSTRAINT products_price_check CHECK ((price >= (0)::numeric))
);
-- ~~
ALTER TABLE public.products OWNER TO postgres;
-- ~~
CREATE VIEW public.order_totals AS
 SELECT o.id,
    sum(((i.qty)::numeric * p.price)) AS total
   FROM ((public.orders o
     JOIN public.order_items i ON ((i.order_id = o.id)))
     JOIN public.products p ON ((p.id = i.product_id)))
  GROUP BY o.id;
-- ~~
ALTER TABLE public.order_totals OWNER TO postgres;
-- ~~
ALTER TABLE public.orders ALTER COLUMN id ADD GENERATED ALWAYS AS IDENTITY (
    SEQUENCE NAME public.orders_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1
);
-- ~~
CREATE SEQUENCE public.products_id_seq
    START WITH 1
    INCREMENT BY 1
    NO MINVALUE
    NO MAXVALUE
    CACHE 1;
-- ~~
ALTER TABLE public.products_id_seq OWNER TO postgres;
-- ~~
ALTER SEQUENCE public.products_id_seq OWNED BY public.products.id;
-- ~~
ALTER TABLE ONLY public.customers ALTER COLUMN id SET DEFAULT nextval('public.customers_id_seq'::regclass);
-- ~~
ALTER TABLE ONLY public.products ALTER COLUMN id SET DEFAULT nextval('public.products_id_seq'::regclass);
-- ~~
COPY public.customers (id, email, name, created) FROM stdin;
-- ~~
COPY public.order_items (order_id, product_id, qty) FROM stdin;
-- ~~
COPY public.orders (id, customer_id, placed, status) FROM stdin;
-- ~~
COPY public.products (id, sku, price, data) FROM stdin;
-- ~~
SELECT pg_catalog.setval('public.customers_id_seq', 2, true);
-- ~~
SELECT pg_catalog.setval('public.orders_id_seq', 1, false);
-- ~~
SELECT pg_catalog.setval('public.products_id_seq', 1, true);
-- ~~
ALTER TABLE ONLY public.customers
    ADD CONSTRAINT customers_email_key UNIQUE (email);
-- ~~
ALTER TABLE ONLY public.customers
    ADD CONSTRAINT customers_pkey PRIMARY KEY (id);
-- ~~
ALTER TABLE ONLY public.order_items
    ADD CONSTRAINT order_items_pkey PRIMARY KEY (order_id, product_id);
-- ~~
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_pkey PRIMARY KEY (id);
-- ~~
ALTER TABLE ONLY public.products
    ADD CONSTRAINT products_pkey PRIMARY KEY (id);
-- ~~
CREATE INDEX customers_lower ON public.customers USING btree (lower(email));
-- ~~
CREATE INDEX orders_placed ON public.orders USING btree (placed DESC) WHERE (status <> 'done'::text);
-- ~~
CREATE TRIGGER t BEFORE INSERT ON public.orders FOR EACH ROW EXECUTE FUNCTION public.trg();
-- ~~
ALTER TABLE ONLY public.order_items
    ADD CONSTRAINT order_items_order_id_fkey FOREIGN KEY (order_id) REFERENCES public.orders(id);
-- ~~
ALTER TABLE ONLY public.order_items
    ADD CONSTRAINT order_items_product_id_fkey FOREIGN KEY (product_id) REFERENCES public.products(id);
-- ~~
ALTER TABLE ONLY public.orders
    ADD CONSTRAINT orders_customer_id_fkey FOREIGN KEY (customer_id) REFERENCES public.customers(id) ON DELETE CASCADE;
-- ~~
REFRESH MATERIALIZED VIEW public.mv;
-- ~~
--
-- PostgreSQL database dump complete
--
