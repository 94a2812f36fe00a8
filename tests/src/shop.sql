CREATE ROLE shop_agent LOGIN PASSWORD ':PASSWORD';
CREATE TABLE customers (
    id integer PRIMARY KEY, name text NOT NULL, email text NOT NULL, ssn varchar(11), card text, iban text,
    born date, notes jsonb);
INSERT INTO customers
SELECT i, 'Customer ' || i, 'customer' || i || '@example.com', lpad(i::text, 3, '0') || '-12-3456',
       '4111111111111111', 'DE89370400440532013000', date '1990-01-01' + i,
       jsonb_build_object('mail', 'customer' || i || '@example.com', 'n', i)
FROM generate_series(1, 1000) AS i;
CREATE TABLE products (id integer PRIMARY KEY, name text NOT NULL, price numeric(10, 2) NOT NULL);
INSERT INTO products SELECT i, 'Product ' || i, i * 1.5 FROM generate_series(1, 200) AS i;
CREATE TABLE orders (
    id integer PRIMARY KEY, customer integer REFERENCES customers, product integer REFERENCES products,
    quantity integer NOT NULL, status text NOT NULL DEFAULT 'open');
INSERT INTO orders SELECT i, i % 1000 + 1, i % 200 + 1, i % 5 + 1, 'open' FROM generate_series(1, 5000) AS i;
CREATE TABLE payroll (id integer PRIMARY KEY, employee text, salary integer);
INSERT INTO payroll VALUES (1, 'Ada', 100000), (2, 'Bob', 90000);
CREATE VIEW contacts AS SELECT id, lower(email) AS mail FROM customers;
GRANT SELECT, INSERT, UPDATE, DELETE ON ALL TABLES IN SCHEMA public TO shop_agent;
GRANT ALL ON SCHEMA public TO shop_agent;
