#!/usr/bin/env bash
# A service that lets in who has a certificate and a token; a client that has both; and the renewal of each while it runs.
#
#   examples/secure.sh CHECKPOINT POOL SEEDS FOLDER [ARGUMENTS OF lookalike serve]
#
# SEEDS is a file of user ids (Parquet, or text with one a line). Everything that is made goes to FOLDER. Wants openssl.
set -euo pipefail
umask 077 # keys and tokens are their owner's alone

checkpoint=$(realpath "$1") pool=$(realpath "$2") seeds=$(realpath "$3") folder=$4
shift 4
mkdir -p "$folder"
cd "$folder"

# An authority of one's own, and a certificate of it for each machine: NAME, and the names clients know it by.
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 3650 -subj '/CN=Lookalike authority' \
  -keyout ca.key -out ca.pem 2>/dev/null
issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -subj "/CN=$1" -keyout "$1.key.new" -out "$1.csr" 2>/dev/null
  openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -days 90 -extfile <(echo "subjectAltName=$2") \
    -out "$1.pem.new" 2>/dev/null
  mv "$1.key.new" "$1.key" && mv "$1.pem.new" "$1.pem"
}
issue server 'DNS:localhost,IP:127.0.0.1'
issue robot 'DNS:robot'

# Who may do what. A token is shown once; of it, the service keeps a hash.
data="service.data_dir=$PWD/data"
lookalike token create --tenant shop --scope expand --scope read --expires 90d --description robot \
  --set "$data" --output shop.token

# The service says its address when it is ready.
exec 3< <(exec lookalike serve --checkpoint "$checkpoint" --pool "$pool" --set "$data" --set service.listen=127.0.0.1:0 \
  --set service.metrics_listen=127.0.0.1:0 \
  --set "service.tls_certificate=$PWD/server.pem" --set "service.tls_key=$PWD/server.key" \
  --set "service.tls_client_ca=$PWD/ca.pem" "$@" 2>serve.log)
service=$!
trap 'kill "$service" 2>/dev/null && cat <&3' EXIT
read -r line <&3 || { cat serve.log >&2; exit 1; }
address=$(sed -n 's/^lookalike serves on \([^ ]*\).*/\1/p' <<<"$line")

client() {
  lookalike client "$@" --server "$address" --token-file shop.token --ca-file ca.pem \
    --certificate-file robot.pem --key-file robot.key
}
client expand --campaign spring --seeds "$seeds" -k 100 --wait

# A new token for the old, which lasts another hour, so that nobody is locked out meanwhile.
id=$(lookalike token list --set "$data" | cut -d' ' -f1)
lookalike token rotate "$id" --grace 1h --set "$data" --output shop.token
client list

# A new certificate, in use from the next connection on.
issue server 'DNS:localhost,IP:127.0.0.1'
client list

# And nobody with a token that was revoked.
lookalike token revoke "$(lookalike token list --set "$data" | tail -1 | cut -d' ' -f1)" --set "$data"
client list && exit 1

echo && cat data/audit.jsonl
