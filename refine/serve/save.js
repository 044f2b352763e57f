// Download a file, given as its name and data URL.
(file) => {
  const link = document.createElement("a");
  link.href = file.data;
  link.download = file.name;
  link.click();
}
