"""A molecule that moves inside a web page: frames as numbers, drawn by a few lines of JavaScript.

Nothing is loaded from elsewhere, so the page works without a network.
"""

import json

import numpy as np
from ase.data import covalent_radii
from ase.data.colors import jmol_colors
from matplotlib.colors import to_hex

_TEMPLATE = """
<canvas id="molecule" width="860" height="430" style="width:100%;max-width:860px;display:block;
margin:auto;cursor:grab;touch-action:none"></canvas>
<p style="text-align:center;color:var(--soft);font-size:.87rem">
<button id="molecule-pause">pause</button>
<label>speed <input id="molecule-speed" type="range" min="1" max="60" value="20"></label>
<span id="molecule-time"></span> drag to turn</p>
<script>
(() => {
  const data = __DATA__;
  const canvas = document.getElementById("molecule"), pen = canvas.getContext("2d");
  const pause = document.getElementById("molecule-pause");
  const speed = document.getElementById("molecule-speed");
  const clock = document.getElementById("molecule-time");
  let yaw = 0.5, pitch = 0.3, frame = 0, running = true, grip = null, last = 0;
  pause.onclick = () => { running = !running; pause.textContent = running ? "pause" : "play"; };
  canvas.onpointerdown = e => { grip = [e.clientX, e.clientY]; canvas.setPointerCapture(e.pointerId); };
  canvas.onpointerup = () => { grip = null; };
  canvas.onpointermove = e => {
    if (!grip) return;
    yaw += (e.clientX - grip[0]) * 0.01; pitch += (e.clientY - grip[1]) * 0.01;
    grip = [e.clientX, e.clientY];
  };
  function project(p) {
    const x = Math.cos(yaw) * p[0] + Math.sin(yaw) * p[2];
    const z = Math.cos(yaw) * p[2] - Math.sin(yaw) * p[0];
    const y = Math.cos(pitch) * p[1] - Math.sin(pitch) * z;
    const depth = Math.cos(pitch) * z + Math.sin(pitch) * p[1];
    const near = data.zoom * 100 / (100 - depth / data.reach * 12);
    return [canvas.width / 2 + near * x, canvas.height / 2 - near * y, depth, near];
  }
  function draw(now) {
    const flat = data.frames[Math.floor(frame) % data.frames.length];
    const atoms = data.colors.map((color, i) => project(flat.slice(3 * i, 3 * i + 3)));
    pen.clearRect(0, 0, canvas.width, canvas.height);
    const parts = atoms.map((a, i) => [a[2], () => {
      const r = data.radii[i] * a[3], g = pen.createRadialGradient(
        a[0] - r / 3, a[1] - r / 3, r / 8, a[0], a[1], r);
      g.addColorStop(0, "#ffffff"); g.addColorStop(0.35, data.colors[i]);
      g.addColorStop(1, data.shades[i]);
      pen.fillStyle = g; pen.beginPath(); pen.arc(a[0], a[1], r, 0, 7); pen.fill();
    }]);
    for (const [i, j] of data.bonds) {
      const a = atoms[i], b = atoms[j];
      parts.push([(a[2] + b[2]) / 2 - 1, () => {
        pen.strokeStyle = "#9aa5b1"; pen.lineWidth = 16 * a[3]; pen.lineCap = "round";
        pen.beginPath(); pen.moveTo(a[0], a[1]); pen.lineTo(b[0], b[1]); pen.stroke();
      }]);
    }
    parts.sort((p, q) => p[0] - q[0]).forEach(p => p[1]());
    clock.textContent = Math.round((Math.floor(frame) % data.frames.length) * data.step) + " fs ·";
    if (running) {
      frame += (now - last) / 1000 * speed.value; if (!grip) yaw += (now - last) * 0.0002;
    }
    last = now; requestAnimationFrame(draw);
  }
  requestAnimationFrame(t => { last = t; draw(t); });
})();
</script>
"""


def bonds(positions: np.ndarray, numbers: np.ndarray) -> list[tuple[int, int]]:
    """Pairs closer than 1.25 times the sum of their covalent radii; positions (n, 3) in Å."""
    distance = np.linalg.norm(positions[:, None] - positions[None], axis=-1)
    reach = 1.25 * (covalent_radii[numbers][:, None] + covalent_radii[numbers][None])
    return [(int(i), int(j)) for i, j in np.argwhere(np.triu(distance < reach, 1))]


def animation_html(frames: np.ndarray, numbers: np.ndarray, femtoseconds: float) -> str:
    """HTML that plays a trajectory.

    Args:
        frames: (f, n, 3), Å.
        numbers: Atomic numbers, (n,).
        femtoseconds: Time between frames.
    """
    centred = frames - frames.mean(axis=1, keepdims=True)
    hundredths = np.rint(100.0 * centred).astype(int)  # short text; a pixel is more
    reach = float(np.abs(hundredths).max())
    data = {
        "frames": hundredths.reshape(len(frames), -1).tolist(),
        "step": femtoseconds,
        "bonds": bonds(frames[0], numbers),
        "radii": [round(45.0 * float(covalent_radii[z]) ** 0.7, 1) for z in numbers],
        "colors": [to_hex(0.92 * jmol_colors[z]) for z in numbers],
        "shades": [to_hex(0.45 * jmol_colors[z]) for z in numbers],
        "reach": reach,
        "zoom": 185.0 / reach,
    }
    return _TEMPLATE.replace("__DATA__", json.dumps(data, separators=(",", ":")))
