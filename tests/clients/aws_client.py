"""boto3 with keys that are worth nothing: each request is signed anew on its way."""

import os
import sys
import urllib.request

import boto3
from botocore.client import Config
from botocore.exceptions import ClientError

url = "https://localhost:" + sys.argv[1]
os.environ.pop("AWS_PROFILE", None)
session = boto3.Session("AKIAMINE", "mine", "mine-too", region_name="eu-central-1")
config = Config(request_checksum_calculation="when_required", s3={"addressing_style": "path"}, retries={"total_max_attempts": 1})
bundle = os.environ.get("SSL_CERT_FILE") or os.environ["REQUESTS_CA_BUNDLE"]
s3 = session.client("s3", endpoint_url=url, config=config, verify=bundle)
names = ["plain", "with space", "a/b//c", "sign+&=?%#", "\u00fcber \u4e2d", "dots/./../x~(1)!*'"]
stored = 0
for name in names:
    body = name.encode() * 100
    try:
        s3.put_object(Bucket="bucket", Key=name, Body=body, Metadata={"a": "one  two", "b": "2"})
    except ClientError as error:
        # A path that leads out of its folder has no one meaning; all else goes through.
        assert ".." in name, error
        continue
    read = s3.get_object(Bucket="bucket", Key=name)["Body"].read()
    assert read == body or ".." in name, name
    stored += 1
assert stored >= 5, stored
assert s3.list_objects_v2(Bucket="bucket", Prefix="a b/", Delimiter="/", StartAfter="~x*")["Contents"]
large = os.urandom(3 << 20)
s3.put_object(Bucket="bucket", Key="large", Body=large)
assert s3.get_object(Bucket="bucket", Key="large")["Body"].read() == large
# Presigned with keys of its own: worth nothing elsewhere, and taken out here.
presigned = s3.generate_presigned_url("get_object", Params={"Bucket": "bucket", "Key": "plain"})
assert urllib.request.urlopen(presigned).read() == b"plain" * 100
# With its checksums at the end of the body, a request is refused, and says what to do.
default = session.client("s3", endpoint_url=url, verify=bundle, config=Config(s3={"addressing_style": "path"}, retries={"total_max_attempts": 1}))
try:
    default.put_object(Bucket="bucket", Key="trailing", Body=b"x")
    raise SystemExit("a body signed piece by piece went through")
except ClientError as error:
    assert error.response["ResponseMetadata"]["HTTPStatusCode"] == 501, error.response
print("ok")
