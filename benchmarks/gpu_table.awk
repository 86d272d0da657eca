# Makes gpu.sh's table of Google Benchmark's JSON files, whose values stand one a line. Variables: driver, limits, clocks, nvcc,
# commit, when, seconds, tests.

function value(line) {
  sub(/^[^:]*: */, "", line)
  sub(/,[ \r]*$/, "", line)
  gsub(/^"|"$/, "", line)
  return line
}
function key(line) {
  sub(/^[ \t]*"/, "", line)
  sub(/".*$/, "", line)
  return line
}
function number(x) {
  if (x == "") return ""
  x += 0
  return sprintf(x >= 1000 ? "%.0f" : x >= 100 ? "%.1f" : x >= 1 ? "%.2f" : "%.3f", x)
}
function ratio(a, b) { return a == "" || b == "" || b + 0 == 0 ? "" : sprintf("%.2f", a / b) }
function end_of_benchmark() {
  if (name == "") return
  sub(/\/iterations:1\/manual_time$/, "", name)
  names[++count] = name
  if (error == "" && now["real_time"] + 0 <= 0) error = "the program ended before it was done"
  if (error != "") {
    left_out[name] = error
  } else {
    time[name] = now["real_time"]
    moved[name] = now["moved_bytes"]
    copy[name] = now["copy_us"]
    flops[name] = now["flop_rate"]
  }
  name = error = ""
  split("", now)
}
function section(title, columns, of,    i, more, line) {
  for (i = 1; i <= count && names[i] !~ of; ++i) {}
  if (i > count) return
  more = columns == "" ? 0 : split(columns, line, "|") - 1
  printf "\n## %s\n\n| case | MB moved | µs | GB/s | device copy, µs | copy / this |%s\n|---|---|---|---|---|---|", title, columns
  for (i = 0; i < more; ++i) printf "---|"
  print ""
  for (i = 1; i <= count; ++i) {
    if (names[i] ~ of) row(names[i], more)
  }
}
function row(of, more,    i, same, tensor, cuda, best) {
  if (of in left_out) {
    printf "| `%s` | | left out: %s | | | |", of, left_out[of]
    for (i = 0; i < more; ++i) printf " |"
    print ""
    return
  }
  printf "| `%s` | %s | %s | %s | %s | %s |", of, number(moved[of] / 1e6), number(time[of]),
         number(moved[of] / time[of] / 1e3), number(copy[of]), ratio(copy[of], time[of])
  if (more == 1) printf " %s |", number(flops[of] / 1e12)
  if (more == 3) {
    same = of
    sub(/^attend/, "", same)
    tensor = time["flashinfer_tensor" same]
    cuda = time["flashinfer_cuda" same]
    best = cuda == "" || (tensor != "" && tensor + 0 < cuda + 0) ? tensor : cuda
    printf " %s | %s | %s |", number(tensor), number(cuda), ratio(best, time[of])
  }
  print ""
}

FNR == 1 { end_of_benchmark() }
/^ *"name": / { end_of_benchmark(); name = value($0); next }
/^ *"error_message": / { error = value($0); next }
/^ *"error_occurred": true/ { if (error == "") error = "an error"; next }
name == "" && /^ *"[a-z0-9_]+": / { context[key($0)] = value($0); next }
/^ *"(real_time|moved_bytes|copy_us|flop_rate)": / { now[key($0)] = value($0) }

END {
  end_of_benchmark()
  meaningless = context["sizes"] == "reduced" || context["device"] ~ /emulator/
  printf "# headaware on %s\n\n", context["device"]
  if (meaningless) {
    print "**Times mean nothing**: tiny sizes, or an emulated device. This table shows that everything runs.\n"
  }
  printf "| | |\n|---|---|\n"
  printf "| GPU | %s, compute capability %s, %s multiprocessors, %s MiB, L2 %s KiB |\n", context["device"],
         context["compute_capability"], context["multiprocessors"], context["memory_mib"], context["l2_kib"]
  printf "| driver, CUDA | driver %s for CUDA up to %s; runtime %s; nvcc %s |\n", driver == "" ? "unknown" : driver,
         context["cuda_of_driver"], context["cuda_runtime"], nvcc == "" ? "unknown (programs were there)" : nvcc
  printf "| clocks, MHz, multiprocessors / memory | at most %s / %s%s; while timing: %s |\n", context["clock_mhz"],
         context["memory_clock_mhz"], limits == "" ? "" : " (nvidia-smi: MHz, MHz, W: " limits ")",
         clocks == "" ? "not known" : clocks
  printf "| commit, when | %s; %s, after %s s |\n", commit, when, seconds
  printf "| device tests | %s |\n", tests
  print "\nTimes are medians, with events, the L2 cache filled with something else before each round. MB moved: the least that is " \
        "read and written. Device copy: `cudaMemcpyAsync` that moves as many bytes, half read, half written; `copy / this` is " \
        "the share of its speed that the kernel reaches."
  section("Compaction", "", "^(compress|copies)")
  section("Append", "", "^append/")
  section("Attention", " FlashInfer, tensor cores, µs | CUDA cores, µs | the faster / this |", "^attend/")
  section("A layer's part of a step, append included", "", "^step/")
  section("Prefill chunks", " TFLOP/s |", "^chunk/")
  section("Latents", "", "^latent/")
  section("Statistics", " TFLOP/s of flash attention's products |", "^observe/")
  print ""
}
