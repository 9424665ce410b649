// SPDX-License-Identifier: Apache-2.0
// The report's three things that move: tables that sort, a matrix one can point into, mistakes that play.
// The page's data: class_names [K], confusion [[true, taken, videos], …] without zeros, videos_per_class [K],
// mistakes [{title, name, where, animation, alt, top: [{label, score, is_true, rank}]}].
'use strict';
const data = JSON.parse(document.getElementById('data').textContent);
const root = document.documentElement;
const still = matchMedia('(prefers-reduced-motion: reduce)');

for (const table of document.querySelectorAll('table.sortable')) {
  const heads = [...table.tHead.rows[0].cells];
  const valueOf = (row, column) => row.cells[column].dataset.value ?? row.cells[column].textContent;
  heads.forEach((head, column) => head.firstElementChild.addEventListener('click', () => {
    const numeric = 'numeric' in head.dataset;
    // What one looks for first: the most, and names from A.
    const first = numeric ? 'descending' : 'ascending', second = numeric ? 'ascending' : 'descending';
    const order = head.ariaSort === first ? second : first;
    const sign = order === 'ascending' ? 1 : -1;
    const rows = [...table.tBodies[0].rows].sort((a, b) => {
      const [x, y] = [valueOf(a, column), valueOf(b, column)];
      return sign * (numeric ? x - y : x.localeCompare(y, undefined, {numeric: true}));
    });
    heads.forEach((other) => { other.ariaSort = other === head ? order : 'none'; });
    table.tBodies[0].append(...rows);
  }));
}

function matrix(canvas) {
  const names = data.class_names, count = names.length, box = canvas.parentElement;
  const readout = document.getElementById(canvas.getAttribute('aria-describedby'));
  const counts = new Map(data.confusion.map(([row, column, n]) => [row * count + column, n]));
  const totals = data.videos_per_class;
  const context = canvas.getContext('2d');
  const font = '12px system-ui, sans-serif';
  let cell = 1, edge = 0, chosen = null;

  const share = (row, column) => (counts.get(row * count + column) ?? 0) / Math.max(totals[row], 1);
  function fitting(name, width) {
    if (context.measureText(name).width <= width) return name;
    while (name && context.measureText(name + '…').width > width) name = name.slice(0, -1);
    return name + '…';
  }
  function draw() {
    const colour = (name) => getComputedStyle(root).getPropertyValue('--' + name).trim();
    const named = count <= 40;
    const room = root.classList.contains('paper') ? 640 : box.clientWidth;
    context.font = font;
    const longest = Math.max(...names.map((name) => context.measureText(name).width));
    edge = named ? Math.ceil(Math.min(longest, room < 500 ? 84 : 150)) + 10 : 0;
    const least = named ? 15 : count <= 150 ? 6 : 3;
    cell = Math.max(least, Math.min(named ? 40 : 12, Math.floor((room - edge - 2) / count)));
    const side = edge + cell * count + 2, dense = Math.min(devicePixelRatio || 1, side > 1500 ? 1 : 2);
    canvas.width = canvas.height = Math.round(side * dense);
    canvas.style.width = canvas.style.height = side + 'px';
    context.setTransform(dense, 0, 0, dense, 0, 0);
    context.font = font;
    context.textBaseline = 'middle';
    context.fillStyle = colour('raised');
    context.fillRect(edge, edge, cell * count, cell * count);
    const gap = cell >= 12 ? 1 : 0;
    for (const [key, n] of counts) {
      const row = Math.floor(key / count), column = key % count, part = share(row, column);
      const [x, y] = [edge + column * cell, edge + row * cell];
      context.globalAlpha = 0.12 + 0.88 * part;  // one video of a thousand is seen as well
      context.fillStyle = colour(row === column ? 'right' : 'wrong');
      context.fillRect(x, y, cell - gap, cell - gap);
      context.globalAlpha = 1;
      if (cell >= 18) {
        context.fillStyle = part > 0.5 ? colour('ground') : colour('text');
        context.textAlign = 'center';
        context.fillText(n, x + (cell - gap) / 2, y + cell / 2);
      }
    }
    if (named) {
      context.fillStyle = colour('text');
      names.forEach((name, i) => {
        const short = fitting(name, edge - 10), middle = edge + (i + 0.5) * cell;
        context.textAlign = 'right';
        context.fillText(short, edge - 6, middle);
        context.save();
        context.translate(middle, edge - 6);
        context.rotate(-Math.PI / 2);
        context.textAlign = 'left';
        context.fillText(short, 0, 0);
        context.restore();
      });
    }
    if (chosen && !root.classList.contains('paper')) {
      const [row, column] = chosen;
      context.strokeStyle = colour('text');
      context.globalAlpha = 0.35;
      context.strokeRect(edge, edge + row * cell - 0.5, cell * count, cell);
      context.strokeRect(edge + column * cell - 0.5, edge, cell, cell * count);
      context.globalAlpha = 1;
      context.lineWidth = 2;
      context.strokeRect(edge + column * cell - 0.5, edge + row * cell - 0.5, cell, cell);
      context.lineWidth = 1;
    }
  }
  function choose(row, column) {
    if (chosen && chosen[0] === row && chosen[1] === column) return;
    chosen = [row, column];
    const n = counts.get(row * count + column) ?? 0;
    const what = row === column ? `${names[row]} named rightly` : `${names[row]} taken for ${names[column]}`;
    readout.textContent = `${what}: ${n} of ${totals[row]} videos` +
        (totals[row] ? ` (${share(row, column).toFixed(3)})` : '');
    draw();
  }
  function point(event) {
    const place = canvas.getBoundingClientRect();
    const [row, column] = [event.clientY - place.top, event.clientX - place.left]
        .map((pixels) => Math.floor((pixels - edge) / cell));
    if (row >= 0 && column >= 0 && row < count && column < count) choose(row, column);
  }
  canvas.addEventListener('pointermove', point);
  canvas.addEventListener('pointerdown', point);
  canvas.addEventListener('keydown', (event) => {
    const [row, column] = chosen ?? [0, 0];
    const moves = {ArrowUp: [-1, 0], ArrowDown: [1, 0], ArrowLeft: [0, -1], ArrowRight: [0, 1]};
    const targets = {Home: [row, 0], End: [row, count - 1], Enter: [row, row]};
    const move = moves[event.key], target = targets[event.key] ?? (move && [row + move[0], column + move[1]]);
    if (!target) return;
    event.preventDefault();
    choose(...target.map((place) => Math.min(Math.max(place, 0), count - 1)));
    const scrolled = edge + chosen[1] * cell;
    if (scrolled < box.scrollLeft + edge || scrolled + cell > box.scrollLeft + box.clientWidth)
      box.scrollLeft = scrolled - box.clientWidth / 2;
  });
  new ResizeObserver(draw).observe(box);
  matchMedia('(prefers-color-scheme: dark)').addEventListener('change', draw);
  return draw;
}
const canvas = document.getElementById('confusion-canvas');
const redraw = canvas ? matrix(canvas) : () => {};

const cards = [...document.querySelectorAll('.mistake')];
for (const [i, card] of cards.entries()) {
  const picture = card.querySelector('img'), own = data.mistakes[i];
  if (!picture) continue;
  own.still = picture.src;
  const play = () => { if (!still.matches) picture.src = own.animation; };
  const rest = () => { picture.src = own.still; };
  for (const name of ['pointerenter', 'focus']) card.addEventListener(name, play);
  for (const name of ['pointerleave', 'blur']) card.addEventListener(name, rest);
}

const dialog = document.getElementById('mistake');
if (dialog) {
  const part = (name) => dialog.querySelector('.' + name);
  let shown = 0, playing = false;
  const animate = (on) => {
    const own = data.mistakes[shown];
    playing = on;
    part('picture').hidden = part('play').hidden = !own.animation;
    if (own.animation) part('picture').src = on ? own.animation : own.still;
    part('play').textContent = on ? 'Stop' : 'Play';
  };
  const show = (i) => {
    shown = (i + cards.length) % cards.length;
    const own = data.mistakes[shown];
    part('title').textContent = own.title;
    part('name').textContent = own.name;
    part('where').textContent = own.where;
    part('place').textContent = `${shown + 1} of ${cards.length}`;
    part('picture').alt = own.alt;
    part('top').replaceChildren(...own.top.map((one) => {
      const [item, line, bar] = ['li', 'span', 'i'].map((tag) => document.createElement(tag));
      const label = document.createElement('span'), score = document.createElement('span');
      label.textContent = `${one.rank}. ${one.label}${one.is_true ? ' (true)' : ''}`;
      score.textContent = one.score.toFixed(3);
      bar.style.width = `${100 * one.score}%`;
      item.className = one.is_true ? 'true' : '';
      line.append(label, score);
      item.append(line, bar);
      return item;
    }));
    animate(!still.matches);
  };
  cards.forEach((card, i) => card.addEventListener('click', () => { show(i); dialog.showModal(); }));
  part('back').addEventListener('click', () => show(shown - 1));
  part('next').addEventListener('click', () => show(shown + 1));
  part('play').addEventListener('click', () => animate(!playing));
  dialog.addEventListener('click', (event) => { if (event.target === dialog) dialog.close(); });
  dialog.addEventListener('keydown', (event) => {
    if (event.key === 'ArrowLeft') show(shown - 1);
    if (event.key === 'ArrowRight') show(shown + 1);
  });
}

// On paper everything is open, and light.
let opened = [];
addEventListener('beforeprint', () => {
  root.classList.add('paper');
  opened = [...document.querySelectorAll('details:not([open])')];
  opened.forEach((one) => { one.open = true; });
  redraw();
});
addEventListener('afterprint', () => {
  root.classList.remove('paper');
  opened.forEach((one) => { one.open = false; });
  redraw();
});
