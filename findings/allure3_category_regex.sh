#!/bin/sh
# SPDX-License-Identifier: BSD-2-Clause
# allure 3 drops a category of allure 2 without a message if its regex has a flag of Java, such as (?s).
#
# Versions:  allure 3.18.0 (npm), its plugin allure2
# Behavior:  categories.json is a file of allure 2, which is written in Java: a messageRegex has to match the whole message, so one for
#            messages of several lines begins with (?s). JavaScript cannot compile (?s). The plugin catches that error and takes the
#            regex for one that does not match. The result is counted as "Product defects", and the exit code is 0.
# Output:    (?s)^known: .*       Product defects, exit code 0
#            ^known: [\s\S]*      Known, exit code 0
# Exit code: 0 while it behaves so, 1 when it changes, 2 when the package cannot be had.
set -eu
work=$(mktemp -d)
trap 'rm -rf "$work"' EXIT
cd "$work"
npm install --silent --no-fund --no-audit allure@3.18.0 >/dev/null 2>&1 || { echo "cannot install allure 3.18.0 from npm" >&2; exit 2; }
mkdir results
cat > results/1-result.json <<'JSON'
{"uuid": "1", "name": "test", "fullName": "test", "status": "failed", "statusDetails": {"message": "known: it is so\nand more"}}
JSON
echo '{"plugins": {"allure2": {"options": {}}}}' > allurerc.json
for regex in '(?s)^known: .*' '^known: [\s\S]*'; do
  REGEX="$regex" python3 -c 'import json, os
print(json.dumps([{"name": "Known", "matchedStatuses": ["failed"], "messageRegex": os.environ["REGEX"]}]))' > results/categories.json
  rm -rf allure-report
  code=0
  node_modules/.bin/allure generate results >/dev/null 2>&1 || code=$?
  names=$(python3 -c 'import json, pathlib
(file,) = pathlib.Path("allure-report").rglob("widgets/categories.json")
print(*(item["name"] for item in json.loads(file.read_text())["items"]))')
  printf '%-20s %s, exit code %s\n' "$regex" "$names" "$code"
done | tee seen
printf '%-20s %s, exit code 0\n' '(?s)^known: .*' 'Product defects' '^known: [\s\S]*' Known | cmp -s - seen
