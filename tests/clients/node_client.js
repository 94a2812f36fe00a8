// node-postgres as an agent would use it. Arguments: the port, and ssl (`disable` or `verify-full`). Prints `ok`.
const assert = require('node:assert')
const fs = require('node:fs')
const { pipeline } = require('node:stream/promises')
const { Readable } = require('node:stream')
const { Client, Pool } = require('pg')
const Cursor = require('pg-cursor')
const { from, to } = require('pg-copy-streams')

const [port, sslmode] = process.argv.slice(2)
const ssl = sslmode === 'verify-full' ? { ca: fs.readFileSync(process.env.PGSSLROOTCERT) } : false
const options = { host: '127.0.0.1', port: Number(port), user: 'agent', password: 'none', database: 'shop', ssl }

const masked = email => assert(!email.split('@')[0].includes('customer'), `not masked: ${email}`)

async function refused (db, sql) {
  await assert.rejects(db.query(sql), error => {
    assert.strictEqual(error.code, '42501')
    assert(error.message.includes('no drops'), error.message)
    return true
  })
}

async function main () {
  const db = new Client(options)
  await db.connect()
  assert.deepStrictEqual((await db.query('SELECT count(*)::int AS n FROM orders')).rows, [{ n: 5000 }])
  const { rows: [customer] } = await db.query('SELECT * FROM customers WHERE id = $1', [7])
  masked(customer.email)
  assert(!customer.card.includes('4111111111111111') && !customer.ssn.includes('007'))
  assert.strictEqual(customer.name, 'Customer 7')
  for (let i = 1; i < 20; i++) {
    const named = { name: 'product', text: 'SELECT name FROM products WHERE id = $1', values: [i] }
    assert.strictEqual((await db.query(named)).rows[0].name, `Product ${i}`)
  }
  // Several statements in one text.
  const several = await db.query('SELECT 1 AS a; SELECT 2 AS b')
  assert.deepStrictEqual(several.map(result => result.rows), [[{ a: 1 }], [{ b: 2 }]])

  await refused(db, 'DROP TABLE orders')
  await db.query('BEGIN')
  await db.query("UPDATE orders SET status = 'lost' WHERE id = 1")
  await refused(db, 'DROP TABLE orders')
  await assert.rejects(db.query('SELECT 1'), { code: '25P02' })
  await db.query('ROLLBACK')
  assert.strictEqual((await db.query('SELECT status FROM orders WHERE id = 1')).rows[0].status, 'open')

  const cursor = db.query(new Cursor('SELECT id, email FROM customers ORDER BY id'))
  let rows = 0
  for (;;) {
    const some = await cursor.read(77)
    if (some.length === 0) break
    some.forEach(row => masked(row.email))
    rows += some.length
  }
  assert.strictEqual(rows, 1000)
  await cursor.close()

  const lines = []
  for (let i = 6000; i < 7000; i++) lines.push(`${i}\t1\t1\t1\tcopied\n`)
  await pipeline(Readable.from(lines), db.query(from('COPY orders FROM STDIN')))
  assert.strictEqual((await db.query("SELECT 1 FROM orders WHERE status = 'copied'")).rowCount, 1000)
  let out = ''
  for await (const chunk of db.query(to('COPY customers (id, email) TO STDOUT'))) out += chunk
  const copied = out.trimEnd().split('\n')
  assert.strictEqual(copied.length, 1000)
  copied.forEach(line => masked(line.split('\t')[1]))
  await db.end()

  const pool = new Pool({ ...options, max: 5 })
  const answers = await Promise.all(Array.from({ length: 50 }, (_, i) => pool.query('SELECT $1::int + 1 AS n', [i])))
  answers.forEach((answer, i) => assert.strictEqual(answer.rows[0].n, i + 1))
  await pool.end()
  console.log('ok')
}

main().catch(error => {
  console.error(error)
  process.exit(1)
})
