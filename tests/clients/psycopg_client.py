"""psycopg 3 as an agent would use it. Arguments: the port, and sslmode. Prints `ok` if all is as it should be."""

import sys

import psycopg
from psycopg import errors

port, sslmode = sys.argv[1], sys.argv[2]
dsn = f"host=127.0.0.1 port={port} dbname=shop user=agent password=none sslmode={sslmode}"


def equal(got, wanted, what):
    assert got == wanted, f"{what}: {got!r} instead of {wanted!r}"


def masked(email):
    assert email and "customer" not in email.split("@")[0], f"not masked: {email!r}"


with psycopg.connect(dsn) as db:
    # Parameters, text and binary.
    equal(db.execute("SELECT count(*) FROM orders").fetchone(), (5000,), "count")
    for binary in (False, True):
        with db.cursor(binary=binary) as cursor:
            cursor.execute("SELECT id, status, quantity FROM orders WHERE id = %b", (7,))
            equal(cursor.fetchone(), (7, "open", 3), f"a row, binary={binary}")
            cursor.execute("SELECT email, ssn, card, name FROM customers WHERE id = %s", (7,))
            email, ssn, card, name = cursor.fetchone()
            masked(email)
            assert "007" not in ssn and "12-3" not in ssn, f"ssn {ssn!r}"
            assert "4111111111111111" not in card, f"card {card!r}"
            equal(name, "Customer 7", "what has no mask")
    # Prepared from the first use on.
    for i in range(1, 20):
        row = db.execute("SELECT name FROM products WHERE id = %s", (i,), prepare=True).fetchone()
        equal(row, (f"Product {i}",), "prepared")

    # A refused command fails its transaction, and only that.
    try:
        with db.transaction():
            db.execute("UPDATE orders SET status = 'lost' WHERE id = 1")
            db.execute("DROP TABLE orders")
        raise AssertionError("DROP TABLE passed")
    except errors.InsufficientPrivilege as error:
        assert "no drops" in str(error), str(error)
    equal(db.execute("SELECT status FROM orders WHERE id = 1").fetchone(), ("open",), "rolled back")
    with db.transaction():
        db.execute("UPDATE orders SET status = 'paid' WHERE id = 1")
    equal(db.execute("SELECT status FROM orders WHERE id = 1").fetchone(), ("paid",), "committed")

    # A cursor at the server, several fetches.
    with db.transaction(), db.cursor(name="walk", binary=True) as cursor:
        cursor.itersize = 100
        cursor.execute("SELECT id, email FROM customers ORDER BY id")
        rows = 0
        for number, email in cursor:
            rows += 1
            equal(number, rows, "order")
            masked(email)
        equal(rows, 1000, "rows of the cursor")
    with db.transaction(), db.cursor(name="jump", scrollable=True) as cursor:
        cursor.execute("SELECT id FROM products ORDER BY id")
        equal(cursor.fetchmany(3), [(1,), (2,), (3,)], "fetchmany")
        cursor.scroll(100, mode="absolute")
        equal(cursor.fetchone(), (101,), "scroll")

    # COPY, both ways, text and binary.
    with db.cursor() as cursor:
        with cursor.copy("COPY (SELECT id, quantity FROM orders ORDER BY id) TO STDOUT") as copy:
            copy.set_types(["int4", "int4"])
            equal(sum(1 for _ in copy.rows()), 5000, "rows copied out")
        with cursor.copy("COPY (SELECT id, quantity FROM orders ORDER BY id) TO STDOUT (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "int4"])
            equal(sum(1 for _ in copy.rows()), 5000, "rows copied out in binary")
        with cursor.copy("COPY customers (id, email) TO STDOUT") as copy:
            for _, email in copy.rows():
                masked(email)
        columns = "COPY orders (id, customer, product, quantity, status) FROM STDIN"
        with cursor.copy(columns) as copy:
            for i in range(6000, 7000):
                copy.write_row((i, 1, 1, 1, "copied"))
        with cursor.copy(f"{columns} (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "int4", "int4", "int4", "text"])
            for i in range(7000, 8000):
                copy.write_row((i, 1, 1, 1, "copied"))
    equal(db.execute("SELECT count(*) FROM orders WHERE status = 'copied'").fetchone(), (2000,), "copied in")
    db.commit()

    # A pipeline, and one with a refused command in its middle.
    with db.pipeline():
        cursors = [db.execute("SELECT %s::int * 2", (i,)) for i in range(50)]
    equal([cursor.fetchone()[0] for cursor in cursors], [i * 2 for i in range(50)], "pipeline")
    try:
        with db.pipeline():
            db.execute("SELECT 1")
            db.execute("DROP TABLE products")
            db.execute("SELECT 2")
        raise AssertionError("DROP TABLE passed in a pipeline")
    except errors.InsufficientPrivilege as error:
        assert "no drops" in str(error), str(error)
    db.rollback()
    equal(db.execute("SELECT count(*) FROM products").fetchone(), (200,), "the session goes on")
    db.commit()

    # Types that psycopg asks the catalogue about.
    from psycopg.types import TypeInfo

    equal(TypeInfo.fetch(db, "numeric").name, "numeric", "type")
    info = db.info
    assert info.server_version >= 150000 and info.parameter_status("client_encoding") == "UTF8"

print("ok")
