# shellcheck shell=bash
# The report of the ablations: the variants that have a finished run, compared with the first of them.
#
#   report_needs       asks for matplotlib before the runs, not after them
#   report             writes SUITE_ROOT/report and prints the table
#
# Both read AXIS_OF and SETTINGS_OF, which have each variant by name, and what experiments/common.sh knows of the runs.

report_needs() {
    local file=$MOPD_ROOT/requirements-analysis.txt
    if "$SUITE_PYTHON" -c 'import matplotlib' 2>/dev/null; then
        return
    fi
    [[ $SUITE_PYTHON == "$MOPD_VENV"/* ]] ||
        mopd_fail 2 "The report needs matplotlib, which $SUITE_PYTHON has not; nothing was started." \
            "To get it: $SUITE_PYTHON -m pip install -r $file"
    mopd_step 'matplotlib, for the report' "$SUITE_PYTHON" -m pip install -r "$file"
}

report() {
    local folder=$SUITE_ROOT/report axis
    local runs=() axes=() # VARIANT=FOLDER of every run that is done, and their axes
    report_collect
    [[ ${#runs[@]} -gt 0 ]] || mopd_fail "$SUITE_CODE" '' 'No run is done, so there is nothing to compare.'
    mkdir -p -- "$folder"
    report_compare "$folder/comparison" "${runs[@]}"
    for axis in "${axes[@]}"; do
        report_axis "$axis"
    done
    report_page >"$folder/index.html"
    printf '\n'
    cat "$folder/comparison.txt"
    printf '  %s\n' "$(report_caveat)" '' "table     $folder/comparison.txt" "figure    $folder/comparison.png" \
        "report    $folder/index.html"
}

report_collect() { # fills runs and axes
    local place variant
    for place in "${!SUITE_NAMES[@]}"; do
        [[ ${SUITE_RESULTS[place]} == done* ]] || continue
        variant=${SUITE_NAMES[place]%-seed*}
        runs+=("$variant=$SUITE_ROOT/${SUITE_NAMES[place]}")
        [[ " ${axes[*]-} " == *" ${AXIS_OF[$variant]} "* ]] || axes+=("${AXIS_OF[$variant]}")
    done
}

report_axis() { # AXIS_OF: the first variant and those of the axis
    local run members=()
    for run in "${runs[@]}"; do
        [[ ${run%%=*} != "${runs[0]%%=*}" && ${AXIS_OF[${run%%=*}]} != "$1" ]] || members+=("$run")
    done
    report_compare "$folder/$1" "${members[@]}"
}

report_compare() { # FILE RUN ...: FILE.txt and FILE.png
    PYTHONPATH=$MOPD_ROOT${PYTHONPATH:+:$PYTHONPATH} \
        "$SUITE_PYTHON" -P -m trainer.compare "${@:2}" --figure "$1.png" 2>&1 | sed '/^  figure /d' >"$1.txt" ||
        mopd_fail 1 "$(<"$1.txt")" '' 'The runs could not be compared.'
}

report_caveat() { # prints how far the table may be believed
    if [[ $SEEDS != *' '* ]]; then
        printf 'One seed: no intervals, so no ranking. '
    else
        printf 'Among %d variants some will look decided by chance. ' "${#AXIS_OF[@]}"
    fi
    ((!SUITE_QUICK)) || printf 'After so few steps of a tiny model a difference of some points is noise.'
}

report_page() { # prints index.html
    local axis place name
    cat <<'HTML'
<!doctype html>
<html lang="en"><meta charset="utf-8"><title>Ablations</title>
<style>
  :root { color-scheme: light dark }
  body { font: 16px/1.5 system-ui, sans-serif; max-width: 70rem; margin: 2rem auto; padding: 0 1rem }
  img { max-width: 100% }
  pre, div { overflow-x: auto }
  pre { font-size: 14px; line-height: 1.3 }
  td, th { padding: .1rem 1.5rem .1rem 0; text-align: left; vertical-align: top }
</style>
<h1>Ablations</h1>
HTML
    printf '<p>%s</p>\n<pre>' "$(report_caveat)"
    sed 's/&/\&amp;/g; s/</\&lt;/g' "$folder/comparison.txt"
    printf '</pre>\n'
    for axis in "${axes[@]}"; do
        printf '<h2>%s</h2>\n<img src="%s.png" alt="held-out quality over steps and tokens">\n' "$axis" "$axis"
    done
    printf '<h2>all</h2>\n<img src="comparison.png" alt="held-out quality over steps and tokens">\n'
    printf '<h2>runs</h2>\n<div><table>\n<tr><th>run<th>departs in<th>result<th></tr>\n'
    for place in "${!SUITE_NAMES[@]}"; do
        name=${SUITE_NAMES[place]}
        printf '<tr><td>%s<td>%s<td>%s<td>' "$name" "${SETTINGS_OF[${name%-seed*}]// /<br>}" "${SUITE_RESULTS[place]}"
        printf '<a href="../%s/report.html">report</a> <a href="../logs/%s.log">log</a></tr>\n' "$name" "$name"
    done
    printf '</table></div></html>\n'
}
