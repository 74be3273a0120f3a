// Run s3rver, an object store, on loopback, store vectors with unusual keys, and have
// links to them presigned by the vendor's SDK.
//
//     node 070_s3.js DIRECTORY
//
// Prints one line of JSON, and ends when its input ends.
const { S3Client, GetObjectCommand, PutObjectCommand } = require("@aws-sdk/client-s3");
const { getSignedUrl } = require("@aws-sdk/s3-request-presigner");
const S3rver = require("s3rver");

const keys = [
	"profile.npy", "a b.npy", "a+b.npy", "a%2Fb.npy", "a/b/c.npy", "é✓.npy", "a'b(c)!*.npy",
	"a=b&c;d.npy", "a?b.npy", "a#b.npy", "~user/a.npy", "a:b@c,d$e.npy", '"<>`{}|^.npy', "%.npy"];

// Return a NumPy file with the vector [n, 0.5].
function npy(n) {
	const header = "{'descr': '<f4', 'fortran_order': False, 'shape': (2,), }".padEnd(117) + "\n";
	const head = Buffer.from([0x93, 0x4e, 0x55, 0x4d, 0x50, 0x59, 1, 0, header.length, 0]);
	const data = Buffer.alloc(8);

	data.writeFloatLE(n, 0);
	data.writeFloatLE(0.5, 4);
	return Buffer.concat([head, Buffer.from(header, "latin1"), data]);
}

async function main() {
	const store = new S3rver({
		address: "127.0.0.1", port: 0, silent: true, directory: process.argv[2],
		configureBuckets: [{ name: "vectors" }]
	});
	const { port } = await store.run();
	const client = new S3Client({
		endpoint: `http://127.0.0.1:${port}`, region: "us-east-1", forcePathStyle: true,
		credentials: { accessKeyId: "S3RVER", secretAccessKey: "S3RVER" },
		requestChecksumCalculation: "WHEN_REQUIRED", responseChecksumValidation: "WHEN_REQUIRED"
	});
	const sign = (key, expiresIn) =>
		getSignedUrl(client, new GetObjectCommand({ Bucket: "vectors", Key: key }), { expiresIn });
	const links = [];

	for (const [n, key] of keys.entries()) {
		await client.send(new PutObjectCommand({ Bucket: "vectors", Key: key, Body: npy(n) }));
		links.push({ key, link: await sign(key, 600) });
	}
	console.log(JSON.stringify({
		links,
		missing: await sign("missing.npy", 600),
		expiring: await sign("profile.npy", 1)
	}));
}

process.stdin.resume().on("end", () => process.exit(0));
main().catch((error) => { console.error(error); process.exit(1); });
