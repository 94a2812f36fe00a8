"""psycopg 3 as an agent would use it. Arguments: the port, and sslmode. Prints `ok` if all is as it should be."""

import datetime
import decimal
import os
import sys

import psycopg
from psycopg import errors
from psycopg.pq import DiagnosticField, ExecStatus
from psycopg.types.json import Jsonb

port, sslmode = sys.argv[1], sys.argv[2]
dsn = f"host=127.0.0.1 port={port} dbname=shop user=agent password=none sslmode={sslmode}"


def equal(got, wanted, what):
    assert got == wanted, f"{what}: {got!r} instead of {wanted!r}"


def masked(email):
    assert email and "customer" not in email.split("@")[0], f"not masked: {email!r}"


def refused(call, rule):
    try:
        call()
    except errors.InsufficientPrivilege as error:
        assert error.sqlstate == "42501" and f'rule "{rule}"' in str(error), str(error)
        return
    raise AssertionError("what is not allowed passed")


if sslmode == "verify-full":
    # For either name, by the environment's CA alone or its bundle; and by no other CA, not even the server's own.
    for more in ("host=localhost", "sslrootcert=system"):
        with psycopg.connect(f"{dsn} {more}") as db:
            assert db.pgconn.ssl_in_use, more
    try:
        psycopg.connect(dsn, sslrootcert=os.path.join(os.path.dirname(__file__), "other-ca.pem"))
        raise AssertionError("any certificate passes")
    except psycopg.OperationalError as error:
        assert "certificate verify failed" in str(error), str(error)

with psycopg.connect(dsn) as db:
    equal(bool(db.pgconn.ssl_in_use), sslmode == "verify-full", "TLS")
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
            for value in (
                decimal.Decimal("-12.50"),
                datetime.date(2024, 2, 29),
                datetime.datetime(2024, 2, 29, 1, 2, 3, 4, tzinfo=datetime.timezone.utc),
                b"\x00\xff bytes",
                "text \u00e9\u4e2d",
                [1, 2, 3],
                1.5,
                True,
                None,
            ):
                equal(cursor.execute("SELECT %b", (value,)).fetchone(), (value,), f"round trip, binary={binary}")
            equal(cursor.execute("SELECT %b", (Jsonb({"a": [1]}),)).fetchone(), ({"a": [1]},), "round trip of jsonb")
            masked(cursor.execute("SELECT mail FROM contacts WHERE id = 7").fetchone()[0])
            masked(cursor.execute("SELECT notes FROM customers WHERE id = 7").fetchone()[0]["mail"])
            rows = cursor.stream("SELECT id, email FROM customers WHERE id <= %s ORDER BY id", (300,))
            for number, (id, email) in enumerate(rows, 1):
                equal(id, number, "order of the stream")
                masked(email)
            equal(number, 300, "rows of the stream")
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

    db.commit()

    # Without a transaction, the session goes on at once.
    db.autocommit = True
    refused(lambda: db.execute("DROP TABLE orders"), "no drops")
    refused(lambda: db.execute("SELECT * FROM payroll WHERE id = %s", (1,)), "default")
    refused(lambda: db.execute("DELETE FROM customers WHERE id = %s", (1,), prepare=True), "default")
    equal(db.execute("SELECT count(*) FROM customers").fetchone(), (1000,), "the session goes on")

    # What each statement of a pipeline is answered with. libpq itself, since psycopg raises at the first error it reads.
    pgconn = db.pgconn
    pgconn.enter_pipeline_mode()
    for statements in ((b"SELECT 1", b"DROP TABLE products", b"SELECT 2"), (b"SELECT 3",)):
        for statement in statements:
            pgconn.send_query_params(statement, None)
        pgconn.pipeline_sync()
    answers = []
    while answers.count("PIPELINE_SYNC") < 2:
        result = pgconn.get_result()
        if result is not None:
            status = ExecStatus(result.status).name
            answers.append(result.get_value(0, 0) if status == "TUPLES_OK" else status)
            if status == "FATAL_ERROR":
                equal(result.error_field(DiagnosticField.SQLSTATE), b"42501", "sqlstate")
    pgconn.exit_pipeline_mode()
    equal(
        answers,
        [b"1", "FATAL_ERROR", "PIPELINE_ABORTED", "PIPELINE_SYNC", b"3", "PIPELINE_SYNC"],
        "answers of the pipeline",
    )
    db.autocommit = False

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
        with cursor.copy("COPY customers (id, email, ssn, card) TO STDOUT (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "text", "varchar", "text"])
            for id, email, ssn, card in copy.rows():
                masked(email)
                assert card != "4111111111111111" and not ssn.startswith(f"{id:03}-12"), (ssn, card)
        columns = "COPY orders (id, customer, product, quantity, status) FROM STDIN"
        with cursor.copy(columns) as copy:
            for i in range(6000, 7000):
                copy.write_row((i, 1, 1, 1, "copied"))
        with cursor.copy(f"{columns} (FORMAT BINARY)") as copy:
            copy.set_types(["int4", "int4", "int4", "int4", "text"])
            for i in range(7000, 8000):
                copy.write_row((i, 1, 1, 1, "copied"))
        query = "INSERT INTO orders VALUES (%s, 1, 1, 1, 'copied')"
        cursor.executemany(query, [(i,) for i in range(8000, 8100)])
    equal(db.execute("SELECT count(*) FROM orders WHERE status = 'copied'").fetchone(), (2100,), "copied in")
    db.commit()

    def copy(statement):
        with db.cursor() as cursor, cursor.copy(statement) as copy:
            if "FROM STDIN" in statement:
                copy.write_row((9000, "x"))
            else:
                copy.read()

    for statement in (
        "COPY payroll TO STDOUT",
        "COPY (SELECT * FROM payroll) TO STDOUT (FORMAT BINARY)",
        "COPY customers (id, name) FROM STDIN",
    ):
        refused(lambda: copy(statement), "default")
        db.rollback()

    # A pipeline, and one with a refused command in its middle.
    with db.pipeline():
        cursors = [db.execute("SELECT %s::int * 2", (i,)) for i in range(50)]
    equal([cursor.fetchone()[0] for cursor in cursors], [i * 2 for i in range(50)], "pipeline")

    def pipeline():
        with db.pipeline():
            db.execute("UPDATE orders SET status = 'lost' WHERE id = 2")
            db.execute("DROP TABLE products")
            db.execute("UPDATE orders SET status = 'lost' WHERE id = 3")

    refused(pipeline, "no drops")
    db.rollback()
    equal(db.execute("SELECT count(*) FROM orders WHERE status = 'lost'").fetchone(), (0,), "lost in a pipeline")
    equal(db.execute("SELECT count(*) FROM products").fetchone(), (200,), "the session goes on")
    db.commit()

    # Every statement prepared, as `prepare_threshold=0` says, also a refused one.
    with psycopg.connect(dsn, prepare_threshold=0, autocommit=True) as other:
        for i in range(1, 4):
            for _ in range(3):
                masked(other.execute("SELECT email FROM customers WHERE id = %s", (i,)).fetchone()[0])
            refused(lambda: other.execute("DELETE FROM customers WHERE id = %s", (i,)), "default")
        names = other.execute("SELECT count(*) FROM pg_prepared_statements").fetchone()
        assert names[0] >= 1, names

    # Types that psycopg asks the catalogue about.
    from psycopg.types import TypeInfo

    equal(TypeInfo.fetch(db, "numeric").name, "numeric", "type")
    info = db.info
    assert info.server_version >= 150000 and info.parameter_status("client_encoding") == "UTF8"

print("ok")
