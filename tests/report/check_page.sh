#!/usr/bin/env bash
# check_page.sh <report_pages> <folder>: the pages that the program writes, as text, without gnuplot, and in a
# browser.
set -euo pipefail
program=$1
folder=$2
rm -rf "$folder"
mkdir -p "$folder"

fail() {
  echo "report: $*" >&2
  exit 1
}
has() {  # has <file> <text>
  grep -qF -- "$2" "$1" || fail "'$2' is not in $1"
}
no_reference() {  # a page must be readable offline
  local found
  found=$(grep -oE '.{0,40}(https?:|src=|url\((&quot;|"|'"'"')?[^#]|@import|<link|<script).{0,40}' "$1" || true)
  if [[ -n $found ]]; then
    fail "$1 refers to something outside itself: ${found:0:300}"
  fi
}

# An empty PATH has no gnuplot: data, scripts and page are written, and both page and stderr say what to install.
PATH=/nonexistent "$program" "$folder/without" 2>"$folder/without.log" >/dev/null
has "$folder/without.log" "apt-get install gnuplot-nox"
has "$folder/without/values/report.html" "apt-get install gnuplot-nox"
for file in types.gp entropy.gp sinks.gp local.gp windows.gp histograms.gp sink_vs_local.gp distances.gp retention.gp \
  rounding.gp heads.tsv histograms.tsv distances.tsv retention.tsv rounding.tsv; do
  [[ -s $folder/without/values/pictures/$file ]] || fail "no $file without gnuplot"
done
[[ ! -e $folder/without/values/pictures/types.svg ]] || fail "pictures without gnuplot"
no_reference "$folder/without/values/report.html"

if ! command -v gnuplot >/dev/null; then
  echo "report: pictures skipped (no gnuplot)"
  exit 0
fi
"$program" "$folder/drawn" 2>"$folder/drawn.log"
[[ ! -s $folder/drawn.log ]] || fail "complaints: $(cat "$folder/drawn.log")"
for report in values mass smallest; do
  page=$folder/drawn/$report/report.html
  no_reference "$page"
  has "$page" "Made-up &lt;model&gt; &amp; &quot;more&quot;: attention heads"
  expected=9
  [[ $report != smallest ]] || expected=8
  [[ $report != values ]] || expected=10
  [[ $(grep -c '<svg ' "$page") == "$expected" ]] || fail "$page has not $expected pictures"
  # No id twice, or one picture would take the other's markers.
  twice=$(grep -oE " id=['\"][^'\"]*['\"]" "$page" | tr -d "'\"" | sort | uniq -d | head -n 3)
  [[ -z $twice ]] || fail "$page has ids twice: $twice"
  [[ -z $(find "$folder/drawn/$report" -name '.headaware-*') ]] || fail "temporary files were left"
  for script in "$folder/drawn/$report"/pictures/*.gp; do
    for picture in "${script%.gp}.svg" "${script%.gp}.png"; do
      (($(wc -c <"$picture") > 2000)) || fail "$picture is empty"
    done
  done
done
has "$folder/drawn/values/report.html" "Output error over the window, 4 sinks kept"
has "$folder/drawn/mass/report.html" "Attention lost over the window, 4 sinks kept"
# A full disk: gnuplot says nothing of it, but no picture without its end takes a name, nor do old ones stay.
cp -r "$folder/drawn" "$folder/full"
if (trap '' XFSZ && ulimit -f 16 && "$program" "$folder/full") >"$folder/full.log" 2>&1; then fail "drew on a full disk"; fi
has "$folder/full.log" "gnuplot: expected a whole picture"
[[ ! -e $folder/full/values/report.html ]] || fail "a page without its pictures"
[[ -z $(find "$folder/full" -name '.headaware-*') ]] || fail "a failed drawing left files"
[[ -z $(find "$folder/full/values/pictures" -name '*.svg' -o -name '*.png') ]] || fail "pictures of another run, or halves"
# A script draws its picture again by itself.
(cd "$folder/drawn/mass/pictures" && rm types.svg && gnuplot types.gp && [[ -s types.svg ]]) || fail "types.gp alone"

browser=""
for name in chromium chromium-browser google-chrome; do
  if command -v "$name" >/dev/null; then browser=$name; fi
done
if [[ -z $browser ]]; then
  echo "report: browser skipped (no chromium)"
  exit 0
fi
run_browser() {
  timeout 120 "$browser" --headless --no-sandbox --disable-gpu --user-data-dir="$folder/browser" "$@" 2>"$folder/browser.log"
}
page=$(realpath "$folder/drawn/values/report.html")
run_browser --dump-dom "file://$page" >"$folder/dom.html" || fail "the browser failed: $(tail -n 3 "$folder/browser.log")"
for heading in "Types of heads" Pictures Layers "Model and parameters"; do
  has "$folder/dom.html" "<h2>$heading</h2>"
done
for picture in types entropy sinks local windows histograms sink_vs_local distances retention rounding; do
  has "$folder/dom.html" "<figure id=\"$picture\">"
done
[[ $(grep -c '<svg ' "$folder/dom.html") == 10 ]] || fail "the browser sees not 10 pictures"
[[ $(grep -c '<figcaption>' "$folder/dom.html") == 10 ]] || fail "the browser sees not 10 captions"
screenshot() {
  run_browser --hide-scrollbars --window-size=1240,3000 --screenshot="$folder/page.png" "file://$page" >/dev/null &&
    [[ -s $folder/page.png ]]
}
# Headless browsers now and then close before they have drawn.
screenshot || screenshot || fail "no screenshot: $(tail -n 3 "$folder/browser.log")"
# A page that shows nothing is a few kilobytes of white.
(($(wc -c <"$folder/page.png") > 100000)) || fail "the page is blank: $folder/page.png"
echo "report: 3 pages checked, one of them in $browser"
